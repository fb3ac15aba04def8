"""The papers' tables and figures, made again row by row: paper beside measured.

papers      what is printed, and each row as settings on a recipe (papers/*.yaml)
settings    the recipe of a row at a scale
rows        training and evaluating rows, resumably
shared      those that stand in several tables, trained once
elsewhere   what columns about images from another distribution need
after       what figures need besides: pictures, surfaces, accuracies by pass
outcome     what stands printed and what came out, as JSON
page        that as Markdown and HTML;  drawings: its figures;  console: on the terminal
"""
