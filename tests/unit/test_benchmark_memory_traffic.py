"""Reads and writes of a compiled program, counted by hand for one of each case."""

from benchmarks.memory_traffic import by_kind, bytes_of, kernels

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_add (p0: f16[8,4], p1: f32[100,4]) -> f32[8,4] {
  %p0 = f16[8,4]{1,0} parameter(0)
  %p1 = f32[100,4]{1,0} parameter(1)
  %part = f32[8,4]{1,0} slice(%p1), slice={[0:8], [0:4]}
  %wide = f32[8,4]{1,0} convert(%p0)
  ROOT %sum = f32[8,4]{1,0} add(%wide, %part)
}

fused_scatter {
  target = f32[1000,4]{1,0} parameter(0)
  places = s32[8,1]{1,0} parameter(1)
  values = f32[8,4]{1,0} parameter(2)
  ROOT scatter.1 = f32[1000,4]{1,0} scatter(target, places, values), to_apply=region
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %value = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %copy.1 = f32[8,4]{1,0} copy(%value)
}

ENTRY %main (a: f16[8,4], b: f32[100,4], c: f32[1000,4], d: s32[8,1]) -> f32[8,4] {
  %a = f16[8,4]{1,0} parameter(0)
  %b = f32[100,4]{1,0} parameter(1)
  %c = f32[1000,4]{1,0} parameter(2)
  %d = s32[8,1]{1,0} parameter(3)
  %loop_add_fusion.3 = f32[8,4]{1,0} fusion(%a, %b), calls=%fused_add, metadata={op_name="a"}
  %pair = (f32[8,4]{1,0}, f16[8,4]{1,0}) tuple(%loop_add_fusion.3, %a)
  %same = f32[8,4]{1,0} get-tuple-element(%pair), index=0
  %conv = (f32[8,4], u8[9]) custom-call(%same, %loop_add_fusion.3,/*2*/%a), custom_call_target="c"
  %input_scatter_fusion = f32[1000,4]{1,0} fusion(%c, %d, %same), calls=%fused_scatter
  %start = (s32[], f32[8,4]{1,0}) tuple(%d, %same)
  ROOT %while.1 = (s32[], f32[8,4]{1,0}) while(%start), body=%body, known_trip_count={"n":"5"}
}
"""


def test_each_kernel_is_counted_once():
    map_bytes, half = 8 * 4 * 4, 8 * 4 * 2
    found = {kernel.name: kernel for kernel in kernels(PROGRAM)}
    assert set(found) == {"loop_add_fusion.3", "conv", "input_scatter_fusion", "copy.1"}
    # Half of the map, and of the 100 rows the 8 that are sliced; the result.
    assert found["loop_add_fusion.3"].num_bytes == half + map_bytes + map_bytes
    assert found["loop_add_fusion.3"].source == "a"
    # The map stands there twice, once under another name; the result has scratch memory.
    assert found["conv"].num_bytes == map_bytes + half + map_bytes + 9
    # Of the target only the 8 rows are read and written, with their places and values.
    assert found["input_scatter_fusion"].num_bytes == 8 * 4 + map_bytes + 2 * map_bytes
    assert (found["copy.1"].num_bytes, found["copy.1"].rounds) == (2 * map_bytes, 5)
    kinds = {kind: (number, cost) for kind, number, cost in by_kind(list(found.values()))}
    assert kinds["copy"] == (5, 10 * map_bytes)
    assert set(kinds) == {"copy", "loop_add_fusion", "c", "input_scatter_fusion"}
    assert by_kind(list(found.values()))[0][0] == "copy"


def test_bytes_of_types():
    assert bytes_of("(f16[8,4]{1,0}, s32[], pred[3]{0}, bf16[2]{0})") == 64 + 4 + 3 + 4
