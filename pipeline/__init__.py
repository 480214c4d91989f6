"""seqpit: sequence corpora to shards to models to a leaderboard."""
