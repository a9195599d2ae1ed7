"""`bench report`: one HTML page that needs nothing else, made from records and what lies beside them.

`content` gathers plain data, `curves` and `gallery` what is drawn of it, `page` writes the file: data as JSON inside the page,
which three scripts turn into tables and pictures in the reader's browser. Nothing is loaded from anywhere.
"""
