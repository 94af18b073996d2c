"""A user's report: what the user knows, forgets and should review.

`picture.py` computes the figures (pure), and `page.py` and `charts.py` show them. The rows come
from `worker/store/operate/report.py`. Nothing here writes to the database.
"""
