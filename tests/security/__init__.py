"""Tests of what each login may do, and of what a hostile sender can do."""
