INSERT INTO predictions (sha256, name, patient, model, fingerprint, decision, predicted_label, probability,
  probabilities, prediction_set, ood_score, warnings, width, height, format, invert, any_modality, "group", age, sex,
  "view", laterality, date, accession_number, study_uid, series_uid, sop_uid, id, created_at)
SELECT
  encode(sha256(convert_to(CASE WHEN i % 10 = 3 THEN i - 1 ELSE i END::text, 'UTF8')), 'hex'),
  'IM-' || i || '.dcm',
  CASE WHEN i % 20 = 0 THEN '' ELSE left(md5('patient ' || study / 2), 16) END,
  (ARRAY['pneumonia-lite0 a', 'pneumonia-lite0 b', 'pneumonia-lite0 c'])[model],
  (ARRAY[repeat('a', 64), repeat('b', 64), repeat('c', 64)])[model],
  decision,
  CASE WHEN p >= 0.5 THEN 'PNEUMONIA' ELSE 'NORMAL' END,
  p,
  json_build_object('NORMAL', 1 - p, 'PNEUMONIA', p),
  CASE WHEN decision IN ('NORMAL', 'PNEUMONIA') THEN json_build_array(decision)
       ELSE '["NORMAL", "PNEUMONIA"]' END,
  random() * 1.1, '[]', 2048, 1536, CASE WHEN i % 4 = 0 THEN 'JPEG' ELSE 'DICOM' END, false, false, NULL,
  i % 90, (ARRAY['F', 'M'])[1 + i % 2], (ARRAY['PA', 'AP'])[1 + i % 2], 'U',
  CASE WHEN i % 4 > 0 THEN to_char(moment, 'YYYY-MM-DD') END,
  CASE WHEN i % 4 > 0 THEN 'A' || study END,
  CASE WHEN i % 4 > 0 THEN '1.2.826.0.1.3680043.10.1561.1.' || study END,
  CASE WHEN i % 4 > 0 THEN '1.2.826.0.1.3680043.10.1561.2.' || study END,
  CASE WHEN i % 4 > 0 THEN '1.2.826.0.1.3680043.10.1561.3.' || i END,
  md5('prediction ' || i), moment
FROM (
  SELECT i, i / 2 AS study, 1 + (i::bigint * 5 / 2 / n)::int AS model,
    LEAST(0.9999, random() * random() * 1.2)::double precision AS p,
    (now() AT TIME ZONE 'UTC') - (n - i) * (interval '730 days' / n) AS moment,
    CASE WHEN i <= 1000 AND i % 4 = 0 THEN 'BACTERIA' WHEN i % 33 = 0 THEN 'out_of_distribution'
         WHEN i % 9 = 0 THEN 'uncertain' WHEN i % 5 = 0 THEN 'PNEUMONIA' ELSE 'NORMAL' END AS decision
  FROM wanted, generate_series(1, n) AS i
) AS drawn;
INSERT INTO reviews (prediction_id, answer, agrees, label, comment, reviewer, verified, created_at)
SELECT md5('prediction ' || i), answer, CASE answer WHEN 'agree' THEN true WHEN 'disagree' THEN false END,
  CASE answer WHEN 'agree' THEN 'NORMAL' WHEN 'disagree' THEN 'PNEUMONIA' END, '', 'Dr ' || reader, true,
  (now() AT TIME ZONE 'UTC') - (n - i) * (interval '730 days' / n) + reader * interval '1 hour'
FROM (
  SELECT n, i, (i / 10 + turn) % 20 AS reader,
    CASE WHEN i % 40 = 0 THEN 'cannot_tell' WHEN i % 70 = 0 AND turn = 2 THEN 'disagree' ELSE 'agree' END AS answer
  FROM wanted, generate_series(10, n, 10) AS i, generate_series(1, 2) AS turn WHERE turn = 1 OR i % 50 = 0
) AS drawn;
INSERT INTO readings (prediction_id, sequence, reader, with_ai, label, confidence, comment, seconds, truth, created_at)
SELECT md5('prediction ' || i), 1, 'Dr ' || (i / 100) % 20, false, 'NORMAL', 80, '', 12.5, NULL,
  (now() AT TIME ZONE 'UTC') - (n - i) * (interval '730 days' / n) + interval '1 hour'
FROM wanted, generate_series(100, n, 100) AS i;
INSERT INTO shadow_predictions (prediction_id, fingerprint, model, decision, predicted_label, probabilities, ood_score,
  created_at)
SELECT md5('prediction ' || i), repeat('d', 64), 'pneumonia-lite0 d', 'NORMAL', 'NORMAL',
  '{"NORMAL": 0.9, "PNEUMONIA": 0.1}', 0.4, (now() AT TIME ZONE 'UTC') - (n - i) * (interval '730 days' / n)
FROM wanted, generate_series(n - n / 50, n) AS i;
INSERT INTO audit (at, caller, role, source, address, action, prediction_id, patient, study, count, status, request)
SELECT (now() AT TIME ZONE 'UTC') - (n - i) * (interval '730 days' / n),
  CASE WHEN i % 13 > 9 THEN 'Dr ' || i % 20 WHEN i <= 100 THEN 'Dr 99' ELSE 'node' END, 'read', 'token', '10.0.0.7',
  CASE WHEN i % 13 > 9 THEN 'view_prediction' WHEN i % 100000 = 5 THEN 'erase' ELSE 'predict' END,
  md5('prediction ' || i * 10 / 13), left(md5('patient ' || i * 10 / 13 / 4), 16), left(md5('study ' || i), 16), 1, 201,
  left(md5('request ' || i), 16)
FROM (SELECT n::bigint * 13 / 10 AS n FROM wanted) AS longer, generate_series(1, n) AS i;
INSERT INTO answered_requests (key, request, began_at, beat_at, status, location, content)
SELECT encode(sha256(convert_to('key ' || i, 'UTF8')), 'hex'), repeat('0', 64),
  extract(epoch FROM now()) - i, extract(epoch FROM now()) - i, 201, '',
  '{"predictions": [{"id": "' || md5('prediction ' || n - i) || '", "name": "' || repeat('x', 1200) || '"}]}'
FROM wanted, generate_series(1, LEAST(20000, n - 1)) AS i
