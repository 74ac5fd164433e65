-- The schema from before migrations, of which such a database may lack the newest tables
CREATE TABLE IF NOT EXISTS case_sets (
    image_id VARCHAR(200) NOT NULL,
    "set" VARCHAR NOT NULL,
    why VARCHAR NOT NULL,
    decided_at DATETIME NOT NULL,
    PRIMARY KEY (image_id)
);
CREATE TABLE IF NOT EXISTS deliveries (
    pacs VARCHAR(500) NOT NULL,
    sop_uid VARCHAR(64) NOT NULL,
    image_id VARCHAR(200) NOT NULL,
    number INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    next_at DATETIME NOT NULL,
    trouble VARCHAR NOT NULL,
    delivered_at DATETIME,
    is_given_up BOOLEAN NOT NULL,
    PRIMARY KEY (pacs, sop_uid)
);
CREATE TABLE IF NOT EXISTS edit_costs (
    label_version_id INTEGER NOT NULL,
    model_version VARCHAR(120) NOT NULL,
    was_trained_on BOOLEAN NOT NULL,
    found JSON NOT NULL,
    mean_dsc DOUBLE,
    added_path_mm DOUBLE,
    changed_voxels INTEGER,
    trouble VARCHAR,
    computed_at DATETIME NOT NULL,
    PRIMARY KEY (label_version_id),
    FOREIGN KEY(label_version_id) REFERENCES label_versions (id)
);
CREATE TABLE IF NOT EXISTS label_versions (
    id INTEGER NOT NULL,
    image_id VARCHAR(200) NOT NULL,
    tag VARCHAR(64) NOT NULL,
    number INTEGER NOT NULL,
    digest VARCHAR(64) NOT NULL,
    parent_id INTEGER,
    source VARCHAR NOT NULL,
    author VARCHAR NOT NULL,
    client VARCHAR NOT NULL,
    model_version VARCHAR,
    organs JSON NOT NULL,
    doubts JSON NOT NULL,
    info JSON NOT NULL,
    submitted_at DATETIME NOT NULL,
    is_in_place BOOLEAN NOT NULL,
    hidden_at DATETIME,
    PRIMARY KEY (id),
    UNIQUE (image_id, tag, number),
    FOREIGN KEY(parent_id) REFERENCES label_versions (id)
);
CREATE TABLE IF NOT EXISTS leases (
    id INTEGER NOT NULL,
    image_id VARCHAR(200) NOT NULL,
    holder VARCHAR(200) NOT NULL,
    strategy VARCHAR NOT NULL,
    why JSON NOT NULL,
    granted_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    ended_at DATETIME,
    ended_by VARCHAR,
    PRIMARY KEY (id)
);
CREATE TABLE IF NOT EXISTS meta (
    "key" VARCHAR NOT NULL,
    value VARCHAR NOT NULL,
    PRIMARY KEY ("key")
);
CREATE TABLE IF NOT EXISTS models (
    version VARCHAR(120) NOT NULL,
    parent VARCHAR,
    run_id INTEGER,
    recipe VARCHAR NOT NULL,
    "commit" VARCHAR,
    labels JSON NOT NULL,
    labels_seen INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    metrics JSON NOT NULL,
    decision VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    report JSON NOT NULL,
    pending JSON,
    created_at DATETIME NOT NULL,
    decided_at DATETIME,
    pruned_at DATETIME,
    PRIMARY KEY (version),
    FOREIGN KEY(run_id) REFERENCES runs (id)
);
CREATE TABLE IF NOT EXISTS pacs_object_scans (
    sop_uid VARCHAR(64) NOT NULL,
    slices JSON NOT NULL,
    PRIMARY KEY (sop_uid)
);
CREATE TABLE IF NOT EXISTS pacs_objects (
    sop_uid VARCHAR(64) NOT NULL,
    series_uid VARCHAR(64) NOT NULL,
    study_uid VARCHAR(64) NOT NULL,
    image_id VARCHAR(200) NOT NULL,
    verdict VARCHAR(20) NOT NULL,
    reason VARCHAR NOT NULL,
    looked_at DATETIME NOT NULL,
    PRIMARY KEY (sop_uid)
);
CREATE TABLE IF NOT EXISTS pacs_series (
    pacs VARCHAR(500) NOT NULL,
    uid VARCHAR(64) NOT NULL,
    study_uid VARCHAR(64) NOT NULL,
    about JSON NOT NULL,
    verdict VARCHAR(20) NOT NULL,
    reason VARCHAR NOT NULL,
    is_listed BOOLEAN NOT NULL,
    first_seen_at DATETIME NOT NULL,
    PRIMARY KEY (pacs, uid)
);
CREATE TABLE IF NOT EXISTS promotions (
    id INTEGER NOT NULL,
    version VARCHAR(120) NOT NULL,
    previous VARCHAR,
    reason VARCHAR NOT NULL,
    "by" VARCHAR NOT NULL,
    since DATETIME NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE IF NOT EXISTS reader_studies (
    image_id VARCHAR(200) NOT NULL,
    readers INTEGER NOT NULL,
    "by" VARCHAR NOT NULL,
    since DATETIME NOT NULL,
    PRIMARY KEY (image_id)
);
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER NOT NULL,
    state VARCHAR NOT NULL,
    why VARCHAR NOT NULL,
    request JSON NOT NULL,
    cases JSON NOT NULL,
    initial_version VARCHAR,
    attempts INTEGER NOT NULL,
    pid INTEGER,
    progress JSON NOT NULL,
    notes JSON NOT NULL,
    candidate VARCHAR,
    outcome VARCHAR,
    created_at DATETIME NOT NULL,
    started_at DATETIME,
    ended_at DATETIME,
    PRIMARY KEY (id)
);
CREATE TABLE IF NOT EXISTS scores (
    id INTEGER NOT NULL,
    image_id VARCHAR(200) NOT NULL,
    model_version VARCHAR(120) NOT NULL,
    kind VARCHAR(20) NOT NULL,
    found JSON NOT NULL,
    trouble VARCHAR,
    seconds DOUBLE NOT NULL,
    computed_at DATETIME NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (image_id, model_version, kind)
);
CREATE TABLE IF NOT EXISTS settings (
    "key" VARCHAR NOT NULL,
    value JSON NOT NULL,
    "by" VARCHAR NOT NULL,
    changed_at DATETIME NOT NULL,
    PRIMARY KEY ("key")
);
CREATE INDEX IF NOT EXISTS by_time ON label_versions (submitted_at);
CREATE INDEX IF NOT EXISTS ix_label_versions_image_id ON label_versions (image_id);
CREATE INDEX IF NOT EXISTS ix_runs_state ON runs (state);
CREATE INDEX IF NOT EXISTS ix_scores_model_version ON scores (model_version);
CREATE INDEX IF NOT EXISTS ix_leases_ended_at ON leases (ended_at);
CREATE INDEX IF NOT EXISTS ix_leases_image_id ON leases (image_id);
CREATE INDEX IF NOT EXISTS ix_leases_holder ON leases (holder);
CREATE INDEX IF NOT EXISTS ix_deliveries_image_id ON deliveries (image_id);
