-- Where an instance is to be moved by order of a user, and its turn among all such orders; NULL for the others.
ALTER TABLE instances ADD COLUMN moves_to TEXT REFERENCES nodes (id);
ALTER TABLE instances ADD COLUMN moves_turn INTEGER;
