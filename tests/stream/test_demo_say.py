"""How the demo says what happens, where nobody sits at a terminal."""

from io import StringIO

from headrace.stream.demo_say import Say


def test_progress_is_a_line_where_it_has_changed():
    out = StringIO()
    say = Say(out, every_seconds=0.0)
    for text in ("it starts", "it starts", "half", "half", "all"):
        say.progress(text)
    assert out.getvalue().splitlines() == ["  it starts", "  half", "  all"]


def test_progress_is_said_now_and_then():
    out = StringIO()
    say = Say(out, every_seconds=60.0)
    for text in ("one", "two"):
        say.progress(text)
    assert out.getvalue() == ""
