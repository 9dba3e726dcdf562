CREATE TABLE properties (
  "key" VARCHAR(40) NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY ("key")
);
CREATE TABLE predictions (
  sha256 VARCHAR(64) NOT NULL,
  name TEXT NOT NULL,
  patient VARCHAR(16) NOT NULL,
  model TEXT NOT NULL,
  fingerprint VARCHAR(64) NOT NULL,
  decision TEXT NOT NULL,
  predicted_label TEXT NOT NULL,
  probability DOUBLE,
  probabilities JSON NOT NULL,
  prediction_set JSON NOT NULL,
  ood_score DOUBLE,
  warnings JSON NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  format VARCHAR(16) NOT NULL,
  invert BOOLEAN NOT NULL,
  any_modality BOOLEAN NOT NULL,
  "group" TEXT,
  id VARCHAR(32) NOT NULL,
  created_at DATETIME NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_predictions_sha256 ON predictions (sha256);
CREATE INDEX ix_predictions_created_at ON predictions (created_at);
CREATE TABLE reviews (
  prediction_id VARCHAR(32) NOT NULL,
  agrees BOOLEAN NOT NULL,
  label TEXT,
  comment TEXT NOT NULL,
  reviewer TEXT NOT NULL,
  created_at DATETIME NOT NULL,
  number INTEGER NOT NULL,
  PRIMARY KEY (number),
  FOREIGN KEY(prediction_id) REFERENCES predictions (id)
);
CREATE INDEX ix_reviews_prediction_id ON reviews (prediction_id);
