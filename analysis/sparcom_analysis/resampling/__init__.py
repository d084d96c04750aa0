"""What chance and length explain: intervals, tests, the measures with T matched."""
