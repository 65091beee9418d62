"""The pickled state of a stock rendezvous, read and written without torch and without unpickling."""
