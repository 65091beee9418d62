"""Our client of etcd v3 (through its JSON gateway): calls with fail-over, leases, watches, settings."""
