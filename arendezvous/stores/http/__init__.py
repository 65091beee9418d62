"""A store on our server, over HTTP."""
