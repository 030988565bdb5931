"""What the pipeline does: stages (verbs), and drawers (plural nouns) of methods for them."""
