"""A laboratory for the lottery ticket hypothesis.

An experiment is a value (`lthlab.values`); `lthlab.lab` turns values into results and trains what is missing.
"""

__version__ = "0.1.0"
