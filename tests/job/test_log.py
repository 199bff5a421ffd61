import re

from rayferry.job.log import MARK, say


def test_every_line_bears_the_mark_and_the_time(capsys):
    say("reading")
    assert re.fullmatch(re.escape(MARK) + r"\d\d:\d\d:\d\d reading\n", capsys.readouterr().out)


def test_a_message_of_several_lines_is_said_in_one(capsys):
    say("one\r\ntwo\nthree")
    assert capsys.readouterr().out.endswith(" one two three\n")
