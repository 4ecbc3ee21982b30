-- The order to bring a volume's data to another node, as JSON; NULL where there is none.
ALTER TABLE volumes ADD COLUMN moving TEXT;
