"""Formats of a leaderboard: one pure function from tables to text per file."""
