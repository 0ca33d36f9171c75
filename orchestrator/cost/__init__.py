"""What a study will cost before it runs: time, memory, disk, price, and what seeds buy."""
