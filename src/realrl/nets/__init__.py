"""Networks: plain torch modules, shapes in, shapes out."""
