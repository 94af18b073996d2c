"""The web console: pages that show what `study-ingest` knows, and forms for what an operator does.

One process, which renders its pages on the server. `app.py` has the list of all pages and acts,
`who.py` decides who may use which, and there is one file of handlers for each page. What is read
and done is in `worker/operate`: this package has no SQL.
"""
