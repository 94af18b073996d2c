"""Who may do what, tried; and what a hostile sender can do."""
