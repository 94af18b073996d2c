"""The learner's picture: what one user knows, forgets and is to review.

`picture.py` is what there is to say (pure), `page.py` and `charts.py` are how it looks; the rows
come from `worker/store/operate/report.py`. Nothing here writes to the database.
"""
