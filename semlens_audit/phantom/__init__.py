"""The qualification world: a renderer in which every attribute is known, and small models trained on its images.

It proves the tool where the truth can be computed: what a model relies on is measured by switching an attribute
for the same lesion, and compared with what the audit says.
"""
