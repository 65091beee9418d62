"""The directory says who serves: the port, and what fulfils it: the address of an endpoint, and etcd."""
