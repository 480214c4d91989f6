"""What runs leave behind: metrics, rows, leaderboard, page."""
