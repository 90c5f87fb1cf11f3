"""One slot over several devices, for models larger than one.

With ``auto`` it is one process, and whole layers lie on each device (`placing`). With ``tensor`` and ``fsdp`` each
device has a process of its own, a rank, and every layer is parted among them. Rank 0 is the slot: it alone takes
chunks, starts the other ranks (`crew`) and orders them to run what it runs itself (`orders`). They know neither broker
nor store, and end with it, as it does with each of them.
"""
