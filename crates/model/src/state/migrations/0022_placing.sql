-- What instances hold on their node, so that who places another there need not read all that they are made of. Ports and GPUs are
-- only counted. Leads to the instances of a node as well.
CREATE INDEX instances_by_holding ON instances (
    node_id,
    workload_id,
    json_extract(container, '$.resources.cpu_reserved_millis'),
    json_extract(container, '$.resources.memory_reserved_bytes'),
    json_extract(container, '$.network.address'),
    coalesce(json_array_length(container, '$.network.ports'), 0) + coalesce(json_array_length(container, '$.gpus'), 0)
);
DROP INDEX instances_by_node;

-- The few workloads with constraints on what is beside them, and whoever has such words elsewhere in the specification. It is looked
-- at as text: one that cannot be read is in nobody's way but its own.
CREATE INDEX workloads_shy ON workloads (id) WHERE instr(lower(spec), '"workload ') > 0;
