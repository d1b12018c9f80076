"""Elements picked and placed by index."""
