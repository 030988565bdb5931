"""Factorizers: a layer's weight as a product of smaller ones."""

from tasks.drawers import Drawer
from tasks.sections import Section


class Factorizer(Section):
    """Contract of a factorizer."""


FACTORIZERS = Drawer("tasks.factorizers", Factorizer)
