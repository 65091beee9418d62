"""A store on a server of the c10d protocol: torch's TCPStore server, or ours."""
