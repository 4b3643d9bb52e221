"""How a stage in shared memory is multiplied, by FMA units and by tensor cores; product.py and weight_product.py call.

A thread's sums are a tuple, row by row; tile.py says which rows and columns those are. Tensor cores multiply in whole
instructions (fragments.py), and read words of samples that lie at any offset.
"""

from .fragments import COLUMNS, ROWS, WARP
from .simt import cuda, device, ptx, tensor
from .tile import WORDS, thread_place
from .words import as_multiplied, values_of


def product_stage(tile, arithmetic):
    """multiply(partial, stage, at, room, sizes, offsets, thread): panels and samples that lie from `at` on."""
    return _product_on_tensor_cores(tile, arithmetic) if tile.tensor else _product_on_fma_units(tile)


def _product_on_fma_units(tile):
    rows, panel_room = tile.rows, tile.panel_room
    place = device(thread_place(tile))
    load_weights, load_samples = ptx.load_run(tile.thread_rows), ptx.load_steps(tile.column_steps)

    @device
    def multiply(partial, stage, at, room, sizes, offsets, thread):
        row, column = place(thread)
        weights_at, samples_at = at + row, at + panel_room + column
        for t in range(0, sizes.stage_words - 1, 2):  # two at a time, so that loads are under way in time
            one = samples_at + ptx.load_shared(offsets, t)
            other = samples_at + ptx.load_shared(offsets, t + 1)
            weights, samples = load_weights(room, weights_at + t * rows), load_samples(room, one)
            partial = ptx.multiply_add(partial, weights, samples)
            weights, samples = load_weights(room, weights_at + (t + 1) * rows), load_samples(room, other)
            partial = ptx.multiply_add(partial, weights, samples)
        if sizes.stage_words % 2:
            t = sizes.stage_words - 1
            one = samples_at + ptx.load_shared(offsets, t)
            weights, samples = load_weights(room, weights_at + t * rows), load_samples(room, one)
            partial = ptx.multiply_add(partial, weights, samples)
        return partial

    return multiply


def _product_on_tensor_cores(tile, arithmetic):
    rows, panel_room, warps_across = tile.rows, tile.panel_room, tile.warps_across
    down, across = tile.fragments
    multiply_add = tensor.multiply_add(arithmetic.name)
    load_weights = tensor.load_weights(down)
    load_samples = ptx.load_steps(tuple(n * COLUMNS for n in range(across)))
    multiplied = as_multiplied(arithmetic)

    @device
    def multiply(partial, stage, at, room, sizes, offsets, thread):
        warp, lane = thread // WARP, thread % WARP
        weights_at = at + (warp // warps_across * down * WARP + lane) * 4
        samples_at = at + panel_room + warp % warps_across * across * COLUMNS + lane // 4
        for t in range(0, sizes.panel_words, 8):
            low, high = t + lane % 4, t + 4 + lane % 4
            low_samples = load_samples(room, samples_at + ptx.load_shared(offsets, low))
            high_samples = load_samples(room, samples_at + ptx.load_shared(offsets, high))
            partial = multiply_add(
                partial, load_weights(room, weights_at + t * rows),
                tensor.words_where(multiplied(low_samples), low < sizes.stage_words),
                tensor.words_where(multiplied(high_samples), high < sizes.stage_words),
            )  # fmt: skip
        return partial

    return multiply


def input_place(tile):
    """Where word t of a row lies in a stage of grad_weight: a function, which kernels compile."""
    pitch = tile.input_pitch

    def of_fma_units(t, row):
        return t * pitch + row

    def of_tensor_cores(t, row):
        return row * pitch + t

    return of_tensor_cores if tile.tensor else of_fma_units


def weight_stage(tile, arithmetic):
    """multiply(partial, at, room, thread): inputs and output gradients of a stage that lie from `at` on."""
    return _weight_on_tensor_cores(tile, arithmetic) if tile.tensor else _weight_on_fma_units(tile)


def _weight_on_fma_units(tile):
    input_pitch, pitch, input_room = tile.input_pitch, tile.pitch, tile.input_room
    place = device(thread_place(tile))
    load_inputs, load_outputs = ptx.load_run(tile.thread_rows), ptx.load_steps(tile.column_steps)

    @device
    def multiply(partial, at, room, thread):
        row, column = place(thread)
        inputs_at, outputs_at = at + row, at + input_room + column
        for t in range(0, WORDS, 2):  # two at a time, so that loads are under way in time
            inputs = load_inputs(room, inputs_at + t * input_pitch)
            outputs = load_outputs(room, outputs_at + t * pitch)
            partial = ptx.multiply_add(partial, inputs, outputs)
            inputs = load_inputs(room, inputs_at + (t + 1) * input_pitch)
            outputs = load_outputs(room, outputs_at + (t + 1) * pitch)
            partial = ptx.multiply_add(partial, inputs, outputs)
        return partial

    return multiply


def _weight_on_tensor_cores(tile, arithmetic):
    input_pitch, pitch, input_room, warps_across = tile.input_pitch, tile.pitch, tile.input_room, tile.warps_across
    down, across = tile.fragments
    multiply_add = tensor.multiply_add(arithmetic.name)
    registers = ((m * ROWS + i % 2 * 8, i // 2 * 4) for m in range(down) for i in range(4))
    load_inputs = ptx.load_steps(tuple(row * input_pitch + t for row, t in registers))
    load_outputs = ptx.load_steps(tuple(n * COLUMNS for n in range(across)))
    multiplied = as_multiplied(arithmetic)

    @device
    def multiply(partial, at, room, thread):
        warp, lane = thread // WARP, thread % WARP
        inputs_at = at + (warp // warps_across * down * ROWS + lane // 4) * input_pitch + lane % 4
        outputs_at = at + input_room + lane % 4 * pitch + warp % warps_across * across * COLUMNS + lane // 4
        for t in range(0, WORDS, 8):
            inputs = multiplied(load_inputs(room, inputs_at + t))
            low = multiplied(load_outputs(room, outputs_at + t * pitch))
            high = multiplied(load_outputs(room, outputs_at + (t + 4) * pitch))
            partial = multiply_add(partial, inputs, low, high)
        return partial

    return multiply


def weight_stage_inside(tile, arithmetic):
    """multiply(partial, at, room, column_place, first_term, length, stride, out_length, thread), term by term.

    Without the products of which the sample of grad_output is absent, by FMA units for every arithmetic.
    """
    input_room, pitch, terms = tile.input_room, tile.pitch, arithmetic.terms
    place, input_at = device(thread_place(tile)), device(input_place(tile))
    if tile.tensor:
        load_inputs = ptx.load_steps(tuple(row * tile.input_pitch for row in tile.row_steps))
    else:
        load_inputs = ptx.load_run(tile.thread_rows)
    load_outputs = ptx.load_steps(tile.column_steps)
    first, second = values_of(arithmetic)

    @device
    def multiply(partial, at, room, column_place, first_term, length, stride, out_length, thread):
        row, column = place(thread)
        places = load_outputs(column_place, column)
        for t in range(WORDS):
            inputs = load_inputs(room, at + input_at(t, row))
            outputs = load_outputs(room, at + input_room + t * pitch + column)
            start = (first_term + t * terms) % length * stride
            partial = ptx.multiply_add_inside(partial, first(inputs), first(outputs), places, start, out_length)
            if terms == 2:
                start = (first_term + t * terms + 1) % length * stride
                partial = ptx.multiply_add_inside(partial, second(inputs), second(outputs), places, start, out_length)
        return partial

    return multiply


def must_be_inside(tile, arithmetic):
    """whether(at, room, thread): whether a stage is multiplied term by term if samples of grad_output are absent.

    FMA units do so always; tensor cores, which cannot leave a product out, where zero would meet Inf or NaN.
    """
    rows, threads = tile.rows, tile.threads
    first, second = values_of(arithmetic)
    input_at = device(input_place(tile))

    @device
    def always(at, room, thread):
        return True

    @device
    def if_not_finite(at, room, thread):
        infinite = thread < 0
        for k in range(0, rows * WORDS, threads):
            word = ptx.load_shared(room, at + input_at((k + thread) % WORDS, (k + thread) // WORDS))
            low, high = first(word), second(word)
            infinite = infinite | (low - low + (high - high) != 0)
        return ptx.any_of_block(infinite)

    return if_not_finite if tile.tensor else always


def pipeline(zero_sums, load, multiply, end_block, depth, block_stages, stage_room):
    """run(stages, loaded, multiplied, ended) -> sums: stage after stage loaded ahead, multiplied, and ended in blocks.

    load(stage, at, *loaded) begins to fill the room of a stage, multiply(partial, stage, at, *multiplied) adds it, and
    end_block(total, partial, stage, *ended) takes the partial sum of the block that a stage is the last of.
    """
    wait_for_stage, wait_for_all = ptx.wait(depth - 2), ptx.wait(0)

    @device
    def run(stages, loaded, multiplied, ended):
        total, partial = zero_sums(), zero_sums()
        for ahead in range(depth - 1 + stages):
            if ahead >= depth - 1:
                wait_for_stage()
                cuda.syncthreads()  # the stage is there for all, and the one before it no longer needed
            if ahead < stages:
                load(ahead, ahead % depth * stage_room, *loaded)
            ptx.commit()
            stage = ahead - (depth - 1)
            if stage >= 0:
                partial = multiply(partial, stage, stage % depth * stage_room, *multiplied)
                if (stage + 1) % block_stages == 0 or stage + 1 == stages:
                    total = end_block(total, partial, stage, *ended)
                    partial = zero_sums()
        wait_for_all()
        cuda.syncthreads()
        return total

    return run
