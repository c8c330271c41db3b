"""What a process of a run owes the others: signals, heartbeat, lock, exit status, last word."""
