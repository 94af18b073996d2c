"""What an operator does to the data and the dead letters: one file or folder for each operation.

Each operation is one transaction for each principal, under the principal's lock; doing it again
changes nothing more, and `verify` finds no difference afterwards. Its queries are in
`worker/store/operate` under the same name; the terminal's part is in `worker/cli`.
"""
