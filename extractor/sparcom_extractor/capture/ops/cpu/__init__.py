"""What capture does on CPUs only."""
