"""Programs that measure, each a process of its own, asked by `benchmarks.process` over stdin and stdout.

`child` is what they have in common. Those of the peers need nothing but the standard library and the peer, so
that they may run in an environment that has the peer and not us. `server` and `members` use nothing of ours
but the public names of the package, so that they measure any checkout that has them.
"""
