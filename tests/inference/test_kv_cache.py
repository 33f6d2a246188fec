"""What decodes together in the torch engine."""

from hypothesis import given
from hypothesis import strategies as st

from inference.kv_cache import decode_batches, max_batch


@given(*[st.integers(1, 200)] * 3, st.integers(1, 20))
def test_what_decodes_together_is_as_much_as_fits(budget, prompt_length, response_length, group_size):
    prompts, samples = max_batch(budget, prompt_length, response_length, group_size)
    assert prompts >= 1 and 1 <= samples <= group_size and (prompts == 1 or samples == group_size)

    def need(prompts, samples):
        return prompts * (prompt_length + samples * response_length)

    assert need(prompts, samples) <= budget or prompts == samples == 1
    assert need(prompts + 1, samples) > budget
    assert samples == group_size or need(1, samples + 1) > budget


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(1, 6), st.integers(1, 40), st.integers(0, 2_000))
def test_every_sample_is_decoded_once_in_order_and_within_the_budget(lengths, group_size, limit, budget):
    decoded = []
    for prompts, samples in decode_batches(lengths, group_size, limit, budget):
        decoded += [(prompt, sample) for prompt in prompts for sample in samples]
        longest = max(lengths[prompt] for prompt in prompts)
        assert len(prompts) * (longest + len(samples) * limit) <= budget or len(prompts) == len(samples) == 1
    assert len(decoded) == len(set(decoded)) == len(lengths) * group_size
    for prompt in range(len(lengths)):
        assert [sample for number, sample in decoded if number == prompt] == list(range(group_size))
    assert [lengths[prompt] for prompt, _ in decoded] == sorted(lengths * group_size, reverse=True)
