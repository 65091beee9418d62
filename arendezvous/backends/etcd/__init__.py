"""``etcd://``: a run kept in an etcd cluster."""
