"""How fast on a GPU: every contender beside a copy on the device, each result verified before it is timed."""
