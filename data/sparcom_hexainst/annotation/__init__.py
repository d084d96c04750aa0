"""Write forms for human annotators and read their answers."""
