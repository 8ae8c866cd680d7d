"""What is here: array libraries, and the facts about them."""
