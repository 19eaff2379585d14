"""What stored records hold: a pydantic model for each kind, against which a record is checked when it is read.

A model only checks. Readers get the record as it was stored, with keys of newer versions; fields that an earlier version did not write have a
default here. storage.py imports this when the first record is read, for pydantic takes a tenth of a second.
"""

# What to do about a record that cannot be read; all that tasks make is made again.
REMEDIES = {
    "run": "begin another run, in another folder",
    "probe": "remove the line, its work will be done again",
    "plan": "search again",
    "front": "search the front again",
    "fit": "run `sedaq fit` again",
    "predictor": "run `sedaq fit` again",
    "prior": "run `sedaq learn` again",
    "contest": "run `sedaq bench search` again",
    "evaluation": "remove the line",
    "tuning": "remove the line",
    "manifest": "delete the folder and apply the plan again",
    "subject": "save or download the folder again",
}
REMADE = "delete the file, it will be made again"
