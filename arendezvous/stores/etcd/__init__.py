"""A store in etcd, version 3."""
