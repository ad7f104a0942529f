//! A zone: read from its master file, and asked by name.

use bytes::Bytes;
use domain::base::iana::Class;
use domain::base::name::FlattenInto;
use domain::base::{Name, Record, Rtype};
use domain::rdata::ZoneRecordData;
use domain::zonefile::inplace::{Entry, Zonefile};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

pub type StoredName = Name<Bytes>;
pub type StoredRecord = Record<StoredName, ZoneRecordData<Bytes, StoredName>>;

/// Files that include each other this deep include each other in a circle.
const MAX_INCLUDES: usize = 16;

/// The records of a zone, by name.
pub struct Zone {
    pub soa: StoredRecord,
    records: HashMap<StoredName, Vec<StoredRecord>>,
    /// Names that have none, but stand between the apex and one that has.
    between: HashSet<StoredName>,
}

/// What a zone has to say of a name.
pub enum Found<'a> {
    /// It has these records.
    Records(&'a [StoredRecord]),
    /// It has none, but a wildcard has these for it.
    Wildcard(&'a [StoredRecord]),
    /// It belongs to a zone below, which these name servers know.
    Delegated(Vec<&'a StoredRecord>),
    /// It is not there.
    Nothing,
    /// It does not belong to the zone.
    Elsewhere,
}

impl Zone {
    pub fn apex(&self) -> &StoredName {
        self.soa.owner()
    }

    /// The records at exactly this name.
    pub fn at(&self, name: &StoredName) -> &[StoredRecord] {
        self.records.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn find(&self, name: &StoredName) -> Found<'_> {
        if !name.ends_with(self.apex()) {
            return Found::Elsewhere;
        }
        // The cut nearest to the apex hides everything below it.
        let above: Vec<StoredName> = self.up_to_apex(name).collect();
        for ancestor in above
            .iter()
            .rev()
            .filter(|ancestor| *ancestor != self.apex())
        {
            let servers = self
                .at(ancestor)
                .iter()
                .filter(|record| record.rtype() == Rtype::NS);
            let servers: Vec<_> = servers.collect();
            if !servers.is_empty() {
                return Found::Delegated(servers);
            }
        }
        let records = self.at(name);
        if !records.is_empty() || self.between.contains(name) {
            return Found::Records(records);
        }
        // A wildcard speaks for names below the nearest ancestor that exists.
        let exists =
            |name: &&StoredName| self.records.contains_key(*name) || self.between.contains(*name);
        let wildcard = above.iter().skip(1).find(exists).and_then(wildcard_below);
        match wildcard.map(|wildcard| self.at(&wildcard)) {
            None | Some([]) => Found::Nothing,
            Some(records) => Found::Wildcard(records),
        }
    }

    /// `name` and those above it, up to the apex.
    fn up_to_apex(&self, name: &StoredName) -> impl Iterator<Item = StoredName> {
        let labels = name.label_count() - self.apex().label_count();
        let above = std::iter::successors(Some(name.clone()), Name::parent);
        above.take(labels + 1)
    }
}

fn wildcard_below(name: &StoredName) -> Option<StoredName> {
    let wire = [b"\x01*", name.as_slice()].concat();
    Name::from_octets(Bytes::from(wire)).ok()
}

/// Reads a zone. An error says where, in which file, and what is wrong.
pub fn load(path: &Path, origin: Option<StoredName>) -> Result<Zone, String> {
    let mut records = Vec::new();
    read(path, origin, &mut records, MAX_INCLUDES)?;
    let at = path.display();
    let mut soas = records.iter().filter(|record| record.rtype() == Rtype::SOA);
    let soa = soas
        .next()
        .cloned()
        .ok_or_else(|| format!("{at}: the zone has no SOA record"))?;
    if soas.next().is_some() {
        return Err(format!("{at}: the zone has more than one SOA record"));
    }
    let mut zone = Zone {
        soa,
        records: HashMap::new(),
        between: HashSet::new(),
    };
    for record in records {
        let owner = record.owner();
        if !owner.ends_with(zone.apex()) {
            return Err(format!(
                "{at}: {owner} is outside of the zone {}",
                zone.apex()
            ));
        }
        let above: Vec<_> = zone.up_to_apex(owner).skip(1).collect();
        zone.between.extend(above);
        let node = zone.records.entry(owner.clone()).or_default();
        if !node.contains(&record) {
            node.push(record);
        }
    }
    for (owner, node) in &zone.records {
        let names = node
            .iter()
            .filter(|record| record.rtype() == Rtype::CNAME)
            .count();
        if names > 0 && node.len() > names || names > 1 {
            return Err(format!(
                "{at}: {owner} has a CNAME record and others beside it"
            ));
        }
    }
    Ok(zone)
}

fn read(
    path: &Path,
    origin: Option<StoredName>,
    records: &mut Vec<StoredRecord>,
    includes_left: usize,
) -> Result<(), String> {
    let at = path.display();
    let file = File::open(path).and_then(|mut file| Zonefile::load(&mut file));
    let mut file = file.map_err(|error| format!("{at}: {error}"))?;
    file.set_default_class(Class::IN);
    if let Some(origin) = origin {
        file.set_origin(origin);
    }
    while let Some(entry) = file.next_entry().map_err(|error| hint(&at, &error))? {
        match entry {
            Entry::Record(record) => {
                let record: StoredRecord = record.flatten_into();
                if record.class() != Class::IN {
                    let (owner, class) = (record.owner(), record.class());
                    return Err(format!(
                        "{at}: {owner} is of class {class}, only IN is served"
                    ));
                }
                records.push(record);
            }
            Entry::Include { path: name, origin } => {
                if includes_left == 0 {
                    return Err(format!("{at}: the files include each other too deep"));
                }
                let included = path.parent().unwrap_or(Path::new("")).join(&*name);
                let origin = origin.or_else(|| file.origin().ok());
                read(&included, origin, records, includes_left - 1)?;
            }
        }
    }
    Ok(())
}

fn hint(at: &std::path::Display<'_>, error: &domain::zonefile::inplace::Error) -> String {
    let text = error.to_string();
    if text.contains("origin") {
        return format!("{at}: {text}: write `$ORIGIN` in the file, or give --origin");
    }
    format!("{at}: {text}")
}
