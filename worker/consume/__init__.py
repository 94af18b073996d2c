"""How a delivery is taken: from the subscription, through a lane, to its ack.

`consumer.py` stays subscribed, `in_hand.py` keeps what has arrived, `lanes.py` carries it through
the transaction, `intake.py` reads it, `settle.py` settles it.
"""
