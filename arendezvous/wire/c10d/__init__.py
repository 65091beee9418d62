"""The protocol of ``torch.distributed.TCPStore``; `protocol` has its facts."""
