"""Layers as traced functions with their gradients, and the operations that these are made of."""

import collections

import tensorflow as tf


def with_gradients(layer, *, jit_compile=None, **call):
    """Returns a function from x to y, the gradient of sum(y**2) by x and those by the weights."""

    @tf.function(autograph=False, jit_compile=jit_compile)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **call)
            loss = tf.reduce_sum(y**2)
        return y, *tape.gradient(loss, [x, *layer.trainable_variables])

    return run


def operations(function, shape):
    """Counts the kinds of operation of a function of one float32 tensor."""
    graph = function.get_concrete_function(tf.TensorSpec(shape)).graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return collections.Counter(node.op for node in nodes)
