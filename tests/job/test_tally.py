from types import SimpleNamespace

from rayferry.job.tally import Life, Tally, summary


def output(num_input, num_cached, *answers):
    outputs = [SimpleNamespace(token_ids=[0] * number) for number in answers]
    return SimpleNamespace(prompt_token_ids=[0] * num_input, num_cached_tokens=num_cached, outputs=outputs)


def test_answers_are_counted_with_their_tokens():
    tally = Tally()
    tally.add(output(10, 4, 5))
    tally.add(output(20, None, 1, 2))
    assert (tally.num_answered, tally.num_input_tokens, tally.num_cached_tokens, tally.num_generated_tokens) == (
        2,
        30,
        4,
        8,
    )
    assert 0 <= tally.first_s <= tally.last_s


def test_what_is_pooled_generates_nothing():
    tally = Tally()
    tally.add(SimpleNamespace(prompt_token_ids=[1, 2], outputs=SimpleNamespace(data=None)))
    assert (tally.num_answered, tally.num_input_tokens, tally.num_generated_tokens) == (1, 2, 0)


def lives():
    done = Tally(num_answered=30, num_input_tokens=100, num_cached_tokens=25, num_generated_tokens=600, last_s=30.0)
    return [
        Life(started_at=0.0, ready_at=10.0, tally=done),
        Life(started_at=0.0, ended_at=20.0),
    ]


def test_the_summary_has_the_rate_of_every_replica():
    first, second = summary(lives(), 1, now=50.0)["replicas"]
    assert first == {"answered": 30, "rows_per_s": 1.0, "tokens_per_s": 20.0, "seconds": 50.0, "idle_s": 0.0}
    assert second == {"answered": 0, "rows_per_s": None, "tokens_per_s": None, "seconds": 20.0, "idle_s": 0.0}


def test_gpu_seconds_count_every_process_for_as_long_as_it_lived():
    assert summary(lives(), 0.25, now=50.0)["gpu_seconds"] == 0.25 * (50 + 20)


def test_the_hit_rate_is_the_share_of_prompt_tokens_that_were_cached():
    assert summary(lives(), 1, now=50.0)["prefix_cache_hit_rate"] == 0.25


def test_without_an_answer_there_is_no_hit_rate():
    assert summary([], 1, now=50.0) == {"prefix_cache_hit_rate": None, "gpu_seconds": 0, "replicas": []}


def test_a_refusal_is_no_answer():
    tally = Tally()
    tally.add(ValueError("too long"))
    assert tally == Tally()


def test_the_first_answer_is_counted_from_the_readiness():
    assert Life(started_at=0.0, ready_at=10.0, tally=Tally(first_s=2.5)).first_at == 12.5
    assert Life(started_at=0.0, ready_at=10.0, tally=Tally()).first_at is None
