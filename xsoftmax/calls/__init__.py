"""What is legal: records, arguments, checks."""
