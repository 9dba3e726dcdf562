CREATE TABLE node_properties (
  key VARCHAR(40) NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (key)
);
CREATE TABLE node_images (
  node VARCHAR(16) NOT NULL,
  key VARCHAR(61) NOT NULL,
  study VARCHAR(40) NOT NULL,
  calling VARCHAR(16) NOT NULL,
  received_at DOUBLE PRECISION NOT NULL,
  state VARCHAR(12) NOT NULL,
  reason TEXT NOT NULL,
  "to" JSON NOT NULL,
  version INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  alone INTEGER NOT NULL,
  kept BOOLEAN NOT NULL,
  answered_at DOUBLE PRECISION,
  sha256 VARCHAR(64) NOT NULL,
  decision TEXT NOT NULL,
  predicted_label TEXT NOT NULL,
  probability DOUBLE PRECISION,
  warnings JSON NOT NULL,
  id SERIAL NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (node, key)
);
CREATE INDEX ix_node_images_study ON node_images (study);
CREATE INDEX node_images_state ON node_images (node, state, received_at);
CREATE TABLE node_studies (
  node VARCHAR(16) NOT NULL,
  study VARCHAR(40) NOT NULL,
  version INTEGER NOT NULL,
  answered_at DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (node, study)
);
CREATE TABLE node_results (
  node VARCHAR(16) NOT NULL,
  image_id INTEGER NOT NULL,
  kind VARCHAR(16) NOT NULL,
  sop_class_uid VARCHAR(64) NOT NULL,
  sop_uid VARCHAR(64) NOT NULL,
  file VARCHAR(40) NOT NULL,
  created_at DOUBLE PRECISION NOT NULL,
  id SERIAL NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (node, sop_uid),
  FOREIGN KEY(image_id) REFERENCES node_images (id)
);
CREATE INDEX ix_node_results_image_id ON node_results (image_id);
CREATE TABLE node_deliveries (
  node VARCHAR(16) NOT NULL,
  result_id INTEGER NOT NULL,
  destination VARCHAR(200) NOT NULL,
  state VARCHAR(12) NOT NULL,
  due_at DOUBLE PRECISION NOT NULL,
  attempts INTEGER NOT NULL,
  sent_at DOUBLE PRECISION,
  commitment VARCHAR(64) NOT NULL,
  error TEXT NOT NULL,
  id SERIAL NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (result_id, destination),
  FOREIGN KEY(result_id) REFERENCES node_results (id)
);
CREATE INDEX ix_node_deliveries_result_id ON node_deliveries (result_id);
CREATE INDEX ix_node_deliveries_commitment ON node_deliveries (commitment);
CREATE INDEX node_deliveries_due ON node_deliveries (node, destination, state, due_at);
CREATE TABLE node_transactions (
  node VARCHAR(16) NOT NULL,
  uid VARCHAR(64) NOT NULL,
  delivery_id INTEGER NOT NULL,
  id SERIAL NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(delivery_id) REFERENCES node_deliveries (id)
);
CREATE INDEX ix_node_transactions_uid ON node_transactions (uid);
CREATE INDEX ix_node_transactions_delivery_id ON node_transactions (delivery_id);
