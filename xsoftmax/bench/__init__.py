"""How fast: every contender's softmax and cross-entropy on the CPU, each result verified before it is timed."""
