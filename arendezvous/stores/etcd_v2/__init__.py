"""A store in etcd's v2 key space, which members that run stock torch can read."""
