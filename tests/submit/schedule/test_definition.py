from datetime import UTC, datetime

import pytest

from rayferry.job.errors import SpecError
from rayferry.submit.schedule.definition import make, moment, render, sha256_of, stamp, submission_id

from .conftest import JOB

TICK = datetime(2026, 3, 3, 18, 0, tzinfo=UTC)


def test_a_schedule_survives_the_way_to_json_and_back(schedule):
    one = schedule(jitter="5m", on_failure={"webhook": "https://example.com/hook"}, timezone="Asia/Shanghai")
    assert make(one.to_json(), "test") == one


@pytest.mark.parametrize("name", ["a/b", "", ".hidden", "-x", "a b", "ä", "x" * 64, "a\n", "..", "a%2F"])
def test_a_name_with_odd_characters_is_refused(schedule, name):
    with pytest.raises(SpecError, match=r"name: .*must be letters, digits"):
        schedule(name=name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cron": "0 0 30 2 *"}, "cron: '0 0 30 2 \\*': not a cron expression"),
        ({"timezone": "Mars/Base"}, "timezone: 'Mars/Base': no such time zone"),
        ({"jitter": "5"}, "jitter: '5': not a duration"),
        ({"overlap": "sometimes"}, "overlap: 'sometimes'"),
        ({"overlap": "replace", "catch_up": "all"}, "only to stop them"),
        ({"on_failure": {}}, "give a webhook or a command"),
        ({"on_failure": {"webhook": "https://a/", "command": "true"}}, "give a webhook or a command"),
        ({"on_failure": {"webhook": "ftp://a/"}}, "write https://HOST/PATH"),
        ({"on_failure": {"webhook": "env:not a name"}}, "write https://HOST/PATH"),
        ({"on_failure": {"webhook": "https://a/b c"}}, "without blanks"),
        ({"on_failure": {"webhook": "https://a:b/"}}, "on_failure.webhook: .*[Pp]ort"),
        ({"since": "yesterday"}, "since: 'yesterday': no time; write it so: 2027-01-31T02:00:00Z"),
        ({"since": "0001-01-01T00:00:00Z"}, "since: .*no time"),
        ({"created_at": "2026-3-1T12:00:00Z"}, "created_at: .*no time"),
        ({"track": True}, "no job_path to follow"),
        ({"crom": "x"}, "crom: unknown key; did you mean 'cron'"),
    ],
)
def test_what_is_not_valid_is_told_by_key_and_value(schedule, changes, said):
    with pytest.raises(SpecError, match=said):
        schedule(**changes)


def test_a_job_gets_the_scheduled_time_of_its_zone(schedule):
    job = JOB | {
        "input": {"uri": ["s3://bucket/{{ scheduled_time | shift(days=-1) | date('%d') }}/", "s3://bucket/x/"]}
    }
    spec = render(schedule(job=job, timezone="Asia/Shanghai"), TICK)
    assert (spec.name, spec.output.uri) == ("reviews-20260304", "s3://bucket/out/2026-03-04T0200/")
    assert spec.input.uri == ["s3://bucket/03/", "s3://bucket/x/"]


def test_a_template_over_columns_is_left_as_it_is(schedule):
    job = JOB | {"input": {"uri": "s3://bucket/in/", "template": "{{ scheduled_time }} {{ text }}"}}
    assert render(schedule(job=job), TICK).input.template == "{{ scheduled_time }} {{ text }}"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/{{ scheduled_tme }}/",
        "s3://bucket/{{ scheduled_time | dat }}/",
        "s3://bucket/{{ scheduled_time | date(1) }}/",
        "s3://bucket/{{ scheduled_time | shift(moons=1) | date }}/",
        "s3://bucket/{{ 'x' | date }}/",
        "s3://bucket/{{ scheduled_time",
        "s3://bucket/{{ ''.__class__.__mro__ }}/",
        "s3://bucket/{{ scheduled_time | shift(days=99999999) | date }}/",
        "s3://bucket/{{ 1 // 0 }}/",
    ],
)
def test_a_template_that_fails_is_told_with_its_place(schedule, text):
    with pytest.raises(SpecError, match=r"output\.uri"):
        render(schedule(job=JOB | {"output": {"uri": text}}), TICK)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ [1][5] }}/{{ (1,)[3] }}", "output.uri"),
        ("{{ 'a'.encode('latin-9000') }}", "it cannot be filled in"),
        ("{{ 'x' | date }}", "date: 'x' is no time"),
        ("{{ scheduled_time | date(1) }}", "date: 1 is no form of a time"),
        ("{{ scheduled_time | date('%Y%Q') }}", "date: '%Y%Q' has a % that stands for nothing"),
        ("{{ scheduled_time | date('%Y%') }}", "date: '%Y%' has a % that stands for nothing"),
        ("{{ scheduled_time | shift(moons=1) | date }}", "shift takes weeks, days, hours, minutes"),
        ("{{ scheduled_time | shift(1) | date }}", "shift takes weeks, days, hours, minutes"),
        ("{{ scheduled_time | shift(days='1') | date }}", "shift takes weeks, days, hours, minutes"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "it cannot be filled in"),
        ("{{ 'x' * 10 ** 18 }}", "it cannot be filled in"),
        ("{% include 'x' %}", "it cannot be filled in"),
    ],
)
def test_a_template_that_fails_in_any_way_is_told_by_schedule_and_place_in_plain_words(schedule, text, said):
    with pytest.raises(SpecError) as caught:
        render(schedule(job=JOB | {"output": {"uri": f"s3://bucket/{text}/"}}), TICK)
    told = str(caught.value)
    assert told.startswith("schedule nightly: output.uri: ")
    assert said in told
    assert not [word for word in ("strftime", "__new__", "_date", "_shift", "recursion", "loader") if word in told]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"model": "m/{{ scheduled_time | date }}"}, "model"),
        ({"runtime_env": {"env_vars": {"DAY": "{{scheduled_time}}"}}}, "runtime_env.env_vars.DAY"),
        ({"input": {"uri": "s3://bucket/in/", "id_column": "{{- scheduled_time }}"}}, "input.id_column"),
    ],
)
def test_the_scheduled_time_where_nobody_fills_it_in_is_refused(schedule, changes, path):
    with pytest.raises(SpecError, match=f"schedule nightly: {path}: .* only name, input.uri and output.uri"):
        render(schedule(job=JOB | changes), TICK)


def test_a_job_that_is_not_the_one_that_was_added_is_refused(schedule):
    with pytest.raises(SpecError, match="not the one that was added, by its sha256"):
        render(schedule(job_sha256="0" * 64), TICK)


def test_what_a_template_makes_must_be_valid(schedule):
    with pytest.raises(SpecError, match="name"):
        render(schedule(job=JOB | {"name": "{{ scheduled_time }}"}), TICK)


def test_one_tick_has_one_submission_id(schedule):
    one = submission_id(schedule(), TICK)
    assert one == submission_id(schedule(cron="0 2 * * *"), TICK.astimezone(schedule(timezone="Asia/Tokyo").zone))
    others = [
        submission_id(schedule(), TICK.replace(minute=1)),
        submission_id(schedule(name="other"), TICK),
        submission_id(schedule(created_at="2026-03-01T12:00:01Z"), TICK),
    ]
    assert len({one, *others}) == 4
    assert one.startswith("nightly-20260303T180000Z-")


def test_a_time_survives_the_way_to_text_and_back():
    assert moment(stamp(TICK)) == TICK


def test_the_hash_of_a_job_does_not_depend_on_the_order_of_its_keys():
    assert sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1}) != sha256_of({"a": 1, "b": 3})
